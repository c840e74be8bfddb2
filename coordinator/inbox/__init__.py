"""What arrives: uploaded or carried in, judged, admitted or refused with a reason."""
