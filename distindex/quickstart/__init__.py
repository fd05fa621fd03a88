"""`distindex quickstart`: the whole path on real data that comes with the installation."""
