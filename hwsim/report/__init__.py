"""Render results as tables, text and pages."""
