import { parseArgs } from 'node:util';
import { simulatedRoom } from './room.ts';
import { ResidentServers } from './server.ts';

const { values } = parseArgs({
  options: {
    members: { type: 'string', default: '10000' },
    servers: { type: 'string', default: '10' },
    port: { type: 'string', default: '18600' },
    full: { type: 'boolean', default: false },
  },
});

const room = await simulatedRoom({
  members: Number(values.members),
  servers: Number(values.servers),
  port: Number(values.port),
});
const resident = new ResidentServers({ room, full: values.full });
await resident.listen();
process.send!(room.roomId);
process.on('message', () => process.send!(resident.served.splice(0)));
process.on('SIGTERM', () => process.exit(0));
