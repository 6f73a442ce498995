"""Language models around the core: encoding, sampling, scoring, and `MassModel` in hf_mass.models.mass_model."""
