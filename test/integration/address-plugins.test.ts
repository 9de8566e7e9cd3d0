import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import type { AddressPlugin, PluginContext } from '../../core/contract/index.js';
import addressCommand from '../../plugins/address-command/index.js';
import addressIp from '../../plugins/address-ip/index.js';
import { type Namespace, namespacesUnavailable, twoHosts } from '../kit/namespaces.js';

/** How late the kernel may be, see plugins/address-ip, and some ms for a busy machine. */
const LATE_MS = 1250 + 300;

if (namespacesUnavailable !== null) console.warn(`addresses are not tested: ${namespacesUnavailable}`);

describe.skipIf(namespacesUnavailable !== null)('an address of a host', () => {
  let hosts: ReturnType<typeof twoHosts>;
  let host: Namespace;
  const announced: unknown[] = [];
  beforeAll(() => {
    hosts = twoHosts();
    host = hosts.a;
    host.sh(`ip addr add 10.9.0.1/24 dev ${host.device}; ip addr add fd09::1/64 dev ${host.device} nodad`);
  });
  afterAll(() => hosts?.remove());

  const context = (address: string) =>
    ({
      run: host.run,
      address,
      announce: async (...call: unknown[]) => void announced.push(call),
    }) as unknown as PluginContext;
  const shown = (address: string) => host.sh(`ip -o addr show dev ${host.device} to ${address}`);
  const gone = (address: string) =>
    expect
      .poll(() => shown(address), { timeout: 10_000, interval: 10 })
      .toBe('')
      .then(() => performance.now());

  describe.each([
    ['10.9.1.5', 32],
    ['fd0a::5', 128],
  ])('%s', (address, prefix) => {
    let mover: AddressPlugin;
    beforeAll(async () => {
      mover = (await addressIp.create({ interface: host.device }, context(address))) as AddressPlugin;
    });

    it('is taken for good, twice, and dropped, twice', async () => {
      await mover.take(null);
      await mover.take(null);
      expect(shown(address)).toMatch(new RegExp(`${address}/${prefix} .*valid_lft forever`));
      // It counts at once, and is not chosen for connections of the host's own.
      expect(shown(address)).not.toContain('tentative');
      const [own, far] = prefix === 32 ? ['10.9.0.1', '10.9.0.7'] : ['fd09::1', 'fd09::7'];
      expect(host.sh(`ip route get ${far}`)).toContain(`src ${own}`);
      await mover.drop();
      await mover.drop();
      expect(shown(address)).toBe('');
      await mover.announce();
      expect(announced.pop()).toEqual([address, host.device]);
    });

    it('is taken away by the kernel when it is not renewed', async () => {
      const taken = performance.now();
      await mover.take(1900);
      expect(shown(address)).toContain('valid_lft 1sec');
      const after = (await gone(address)) - taken;
      expect(after).toBeGreaterThan(1000);
      expect(after).toBeLessThan(1000 + LATE_MS);
    });

    it('stays when it is renewed, and a lifetime can become endless and limited again', async () => {
      await mover.take(1500);
      await mover.renew(30_000);
      expect(shown(address)).toMatch(/valid_lft (30|29)sec/);
      await mover.take(null);
      expect(shown(address)).toContain('valid_lft forever');
      await mover.renew(2000);
      expect(shown(address)).toMatch(/valid_lft [12]sec/);
      await mover.drop();
    });
  });

  it('the margin is taken off, and what fails says so', async () => {
    const options = { interface: host.device, margin: 1250 };
    const mover = (await addressIp.create(options, context('10.9.1.6'))) as AddressPlugin;
    await mover.take(4950);
    expect(shown('10.9.1.6')).toContain('valid_lft 3sec');
    await mover.drop();
    const lost = (await addressIp.create({ interface: 'nowhere' }, context('10.9.1.6'))) as AddressPlugin;
    await expect(lost.take(null)).rejects.toMatchObject({ code: 'OUTLIVE_COMMAND_FAILED' });
    await expect(lost.drop()).rejects.toMatchObject({ code: 'OUTLIVE_COMMAND_FAILED' });
    const mute = { ...context('10.9.1.6'), announce: undefined };
    const silent = (await addressIp.create({ interface: host.device }, mute)) as AddressPlugin;
    await expect(silent.announce()).rejects.toMatchObject({ code: 'OUTLIVE_ADDRESS_ANNOUNCE' });
  });

  it('is moved by commands as well', async () => {
    const ip = ['ip', 'addr', 'replace', '{address}/32', 'dev', host.device, 'valid_lft', '{lifetime}'];
    const options = {
      take: [...ip, 'preferred_lft', '{lifetime}'],
      drop: ['sh', '-c', `ip addr del {address}/32 dev ${host.device} || true`],
    };
    const mover = (await addressCommand.create(options, context('10.9.1.7'))) as AddressPlugin;
    await mover.take(null);
    expect(shown('10.9.1.7')).toContain('valid_lft forever');
    await mover.renew(20_500);
    expect(shown('10.9.1.7')).toMatch(/valid_lft (20|19)sec/);
    await mover.drop();
    await mover.drop();
    expect(shown('10.9.1.7')).toBe('');
  });
});
