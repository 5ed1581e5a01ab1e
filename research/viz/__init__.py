"""Drawing: pictures and charts as PIL images."""
