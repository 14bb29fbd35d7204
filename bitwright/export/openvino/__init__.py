"""OpenVINO's own representation: a graph in XML beside the bytes of its constants."""
