module ganglion.dev/bench/rivals

go 1.26
