"""What becomes of predictions: files, pictures, tables, the page that plays frames."""
