# A small simulation: a ball falls for some seconds through air of some drag, in steps of a hundredth of a second.
# Its input has `mass=…` and `height=…`; it prints where the ball is in the end.
# Usage: awk -v drag=0.3 -v seconds=2 -f simulate.awk INPUT
BEGIN { FS = "=" }
{ value[$1] = $2 }
END {
    if (value["mass"] + 0 <= 0) {
        print "no mass in " FILENAME ": the ball cannot fall" > "/dev/stderr"
        exit 3
    }
    height = value["height"]
    for (step = 0; step < seconds * 100; step++) {
        speed += (9.81 - drag / value["mass"] * speed) / 100
        height -= speed / 100
    }
    printf "%.3f\n", height
}
