"""Prediction of volumes and their scores."""
