"""The shipped cascade: weights, cascade.json and card.md, trained on generated weather alone."""
