"""Look at each link of the way from here to a kernel on a host, in order."""
