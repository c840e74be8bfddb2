"""The Flower app that pulls bundles; its code is in the installed `ddm-fed`."""
