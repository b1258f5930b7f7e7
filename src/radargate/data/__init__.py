"""Rows of tasks: reading them from files, folders and the Hub, turning them into tokens and batches."""
