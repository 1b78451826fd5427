# Another program at a hook of an interface: what a second network plugin, or an intruder, does there.
#   before INTERFACE HOOK COUNT   puts COUNT programs that let everything pass before all others, says
#                                 "attached", and takes them away when it ends (46: ingress, 47: egress)
#   count INTERFACE HOOK          says how many programs are there, or "none" where the kernel has no tcx
#   detach PIN                    detaches the link that is pinned there
use strict;
use warnings;
use POSIX ();

my $number = (POSIX::uname())[4] =~ /^aarch64/ ? 280 : 321;

sub bpf {
    # Not a copy: the kernel writes what it answers into the attributes.
    my $outcome = syscall($number, $_[0], $_[1], length $_[1]);
    die "bpf $_[0]: $!\n" if $outcome < 0;
    return $outcome;
}

sub address { return unpack('Q', pack('P', $_[0])) }

my $what = shift;
$| = 1;
if ($what eq 'before') {
    my ($interface, $hook, $count) = @ARGV;
    # r0 = TCX_PASS; exit
    my $code = pack('CCsl CCsl', 0xb7, 0, 0, 0, 0x95, 0, 0, 0);
    my $license = "GPL\0";
    for (1 .. $count) {
        my $program = bpf(5, pack('LLQQLLQLLa16', 3, 2, address($code), address($license),
            0, 0, 0, 0, 0, 'rival'));
        # BPF_F_BEFORE, relative to nothing: the first. Somebody else may have the last place (ERANGE).
        my $link = pack('LLLLLLQ', $program, $interface, $hook, 8, 0, 0, 0);
        until (eval { bpf(28, $link) }) {
            die $@ unless $! == POSIX::ERANGE();
            select(undef, undef, undef, 0.01);
        }
    }
    print "attached\n";
    sleep;
} elsif ($what eq 'detach') {
    my $path = "$ARGV[0]\0";
    my $link = bpf(7, pack('QLL', address($path), 0, 0));
    bpf(34, pack('L', $link));
} elsif ($what eq 'count') {
    my ($interface, $hook) = @ARGV;
    my $attributes = pack('LLLLQLLQQQQ', $interface, $hook, (0) x 9);
    my $known = eval { bpf(16, $attributes) };
    die $@ unless defined $known or $! == POSIX::EINVAL();
    print defined $known ? unpack('x24 L', $attributes) : 'none', "\n";
}
