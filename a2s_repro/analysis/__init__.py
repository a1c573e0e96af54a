"""Looking at what was trained: figures, reports, comparisons of runs, and the search for CRF parameters."""
