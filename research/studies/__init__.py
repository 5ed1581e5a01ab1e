"""Studies: questions answered by trained runs, the records of these runs, and the results page."""
