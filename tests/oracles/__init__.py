"""Independent judges of lptensor: nothing here imports the code it judges."""
