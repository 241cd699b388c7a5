import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { EMPTY_HASH, encodePath, signedHeaders } from '../aws-signature.ts';

const CREDENTIALS = {
  accessKey: 'AKIAIOSFODNN7EXAMPLE',
  secretKey: 'wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY',
  region: 'us-east-1',
};
const NOW = new Date('2013-05-24T00:00:00Z');
const host = 'examplebucket.s3.amazonaws.com';

/** The examples of "Authenticating Requests: Using the Authorization Header" in the documentation of S3. */
describe('AWS Signature Version 4', () => {
  for (const [name, request, signature] of [
    [
      'of a part of an object',
      { method: 'GET', path: '/test.txt', headers: { host, range: 'bytes=0-9' } },
      'f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41',
    ],
    [
      'of an upload',
      {
        method: 'PUT',
        path: encodePath('/test$file.text'),
        headers: {
          host,
          date: 'Fri, 24 May 2013 00:00:00 GMT',
          'x-amz-storage-class': 'REDUCED_REDUNDANCY',
        },
        bodyHash: '44ce7dd67c959e0d3524ffac1771dfbba87d2b6b4b4e99e42034a8b803f8b072',
      },
      '98ad721746da40c64f1a55b78f14c238d841ea1380cd77a1b5971af0ece108bd',
    ],
    [
      'of a parameter without a value',
      { method: 'GET', path: '/', query: { lifecycle: '' }, headers: { host } },
      'fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543',
    ],
    [
      'of a list',
      { method: 'GET', path: '/', query: { prefix: 'J', 'max-keys': '2' }, headers: { host } },
      '34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7',
    ],
  ] as const)
    it(`is right for the example ${name}`, () => {
      const { authorization } = signedHeaders(CREDENTIALS, { bodyHash: EMPTY_HASH, ...request }, NOW);
      assert.equal(/Signature=(\w+)$/.exec(authorization!)![1], signature);
      assert.match(authorization!, /Credential=AKIAIOSFODNN7EXAMPLE\/20130524\/us-east-1\/s3\/aws4_request,/);
    });

  it('encodes paths as S3 does', () => {
    assert.equal(encodePath("/a b/c+d/(e)*!'/ü"), '/a%20b/c%2Bd/%28e%29%2A%21%27/%C3%BC');
  });
});
