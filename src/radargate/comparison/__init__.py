"""Every way of combining the same adapters, on the same rows: cells, how they are run, statistics and page. Imports training and evaluation."""
