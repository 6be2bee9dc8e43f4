"""The web demo: one page over `unipercept.api`. No model code lives here; gradio is imported by this package alone."""
