"""What is odd about a labelled data set: the cheap part is looked at before every use of one."""
