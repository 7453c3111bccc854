"""`mvlm golden explain`: which known porting mistakes reproduce what another implementation computed."""
