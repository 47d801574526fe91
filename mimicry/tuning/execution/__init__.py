"""Carrying out a plan: trainings, claims, bookmarks, pending uploads."""
