"""Block DCT: selection of coefficients, reading of JPEG files, geometry, stems."""
