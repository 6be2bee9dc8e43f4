"""Equations that make weather-like data here: spectral shallow water and quasi-geostrophic flow."""
