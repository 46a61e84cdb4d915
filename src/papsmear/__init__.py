"""papsmear: from digitised cervical cytology slides to a slide-level diagnosis, learning mostly without labels."""

__version__ = "0.1.0"
