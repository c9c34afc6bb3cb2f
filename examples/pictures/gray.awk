# Make a picture gray: plain PPM (P3) becomes plain PGM (P2), in the file `out`; print how bright it is, 0 to 255.
{
    sub(/#.*/, "")
    for (i = 1; i <= NF; i++) word[++words] = $i
}

END {
    if (word[1] != "P3" || words != 4 + 3 * word[2] * word[3] || words == 4) {
        print FILENAME ": not a picture in plain PPM" | "cat >&2"
        exit 1
    }
    print "P2\n" word[2], word[3] "\n" word[4] >out
    for (i = 5; i < words; i += 3) {
        gray = int(0.299 * word[i] + 0.587 * word[i + 1] + 0.114 * word[i + 2] + 0.5)
        print gray >out
        sum += gray
    }
    print FILENAME, int(sum / (word[2] * word[3]))
}
