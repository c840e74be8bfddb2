"""From an ensemble to one network that says what it says: taught, signed as a folder, sampled.

Source: McAllister et al. 2025, arXiv:2501.05450, section 4.5: L = E |v_student - v_teacher|^2,
where the expert of each datum's own cluster teaches.
"""
