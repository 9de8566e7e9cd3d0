/** What is wrong with the network between the hosts of a lab. Hosts are given by name. */
export interface Faults {
  /** Hosts that nothing reaches and that reach nobody. */
  readonly down: ReadonlySet<string>;
  /** Pairs of which the first host's packets do not reach the second one. */
  readonly blocked: readonly (readonly [from: string, to: string])[];
  /** Percentage of packets that is lost on the way to and from a host, each way. */
  readonly loss: ReadonlyMap<string, number>;
}

/** The bridge's end of a host's cable. At most 15 bytes (IFNAMSIZ), so a host's name has at most 13. */
export function portOf(host: string): string {
  return `p-${host}`;
}

/** The device that stands in for {@link portOf} at the bridge while a relay delays a host's packets. */
export function relayOf(host: string): string {
  return `d-${host}`;
}

/**
 * The whole rule set of a lab as input for `nft -f`, which replaces what was there in one step. Packets are dropped between the ports of
 * the bridge, so a host notices nothing but silence: its interface stays up, and its kernel goes on sending.
 */
export function rulesFor(faults: Faults): string {
  const devices = (host: string) => `{ "${portOf(host)}", "${relayOf(host)}" }`;
  const rules: string[] = [];
  for (const host of faults.down) rules.push(`iifname ${devices(host)} drop`, `oifname ${devices(host)} drop`);
  for (const [from, to] of faults.blocked) rules.push(`iifname ${devices(from)} oifname ${devices(to)} drop`);
  for (const [host, percent] of faults.loss) {
    const chance = percent >= 100 ? 'drop' : `numgen random mod 10000 < ${Math.floor(percent * 100)} drop`;
    rules.push(`iifname ${devices(host)} ${chance}`, `oifname ${devices(host)} ${chance}`);
  }
  // Naming the table first makes its removal legal where it is not there yet.
  return [
    'table bridge lab',
    'delete table bridge lab',
    'table bridge lab {',
    '  chain forward {',
    '    type filter hook forward priority 0; policy accept;',
    ...rules.map((rule) => `    ${rule}`),
    '  }',
    '}',
    '',
  ].join('\n');
}
