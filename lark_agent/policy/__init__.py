"""Site rules and ads in, one network plan out; no input or output of its own."""
