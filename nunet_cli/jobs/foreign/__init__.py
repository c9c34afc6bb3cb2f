"""Job descriptions of other tools as job specifications, as far as they map; what does not is listed with a reason."""
