"""Profiles and ground-truth explanations, written from reviews: what is asked, of whom, and what it costs."""
