"""An ensemble, a student or an expert in the forms that other programs load."""
