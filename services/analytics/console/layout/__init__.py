"""What every page is made of: the frame, the parts, a second question, addresses."""
