"""JAXline experiments that train and evaluate the networks of `nfnets`."""

# First of all: it sets what TensorFlow reads when it is imported, and JAXline
# imports TensorFlow too.
import nfnets.data  # noqa: F401
