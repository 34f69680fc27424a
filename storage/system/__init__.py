"""What the operating system gives: free memory, cores and worker processes, folders of a node."""
