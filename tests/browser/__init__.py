"""Every page of the book in a browser: `make browser`."""
