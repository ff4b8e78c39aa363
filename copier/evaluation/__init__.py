"""Measuring what a copier and a LoRA do, and the report that shows it. No torch."""
