"""Equations that make weather-like data here: spectral shallow water, quasi-geostrophic flow, plane waves."""
