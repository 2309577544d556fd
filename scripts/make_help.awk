# Prints the targets of a Makefile: `##@ Group` lines, and `target: … ## what it does`.
/^##@ / { printf "\n%s\n", substr($0, 5); next }
match($0, /^[a-z0-9-]+:.* ## /) {
	printf "  %-14s %s\n", substr($0, 1, index($0, ":") - 1), substr($0, RSTART + RLENGTH)
}
