"""Scoring of rows: multiple choice, free answers and gold-answer NLL, with intervals."""
