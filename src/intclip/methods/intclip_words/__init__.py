"""IntCLIP whose semantic map also asks the words of a post."""
