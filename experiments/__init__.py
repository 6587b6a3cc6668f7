"""JAXline experiments that train and evaluate the networks of `nfnets`."""
