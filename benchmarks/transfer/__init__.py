"""Transfer of a real backbone to two small tasks; everything comes from package registries."""
