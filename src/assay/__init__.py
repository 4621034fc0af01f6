"""assay: experiments on watermarks of neural networks, a method x task x attack x seed grid on Ray Tune."""
