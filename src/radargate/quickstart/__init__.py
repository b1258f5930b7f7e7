"""The main job on an embedded default, and its page. Imports training, evaluation and report."""
