"""The main job: a small network trained on real digits in several number systems, side by side."""
