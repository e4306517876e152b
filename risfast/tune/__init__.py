"""Studies: which options train and detect best, searched by any number of workers that may die at any instant."""
