"""What an NPU will run of a graph: written rules for every target, real compilers where found."""
