module peers/load

go 1.23

require github.com/HdrHistogram/hdrhistogram-go v1.1.2
