"""Writers of predictions, and the page that plays frames."""
