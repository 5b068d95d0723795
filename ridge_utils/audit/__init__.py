"""The audit: is the ridge real? One module per page, with its tables, sentences and figures."""
